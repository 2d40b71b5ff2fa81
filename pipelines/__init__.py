"""One linear run(config) per stage, the only place where the parts are joined; a folder holds a stage's own files."""
