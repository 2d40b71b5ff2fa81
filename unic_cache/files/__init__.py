"""Where files are: local folders, object stores, web servers."""
