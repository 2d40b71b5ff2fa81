"""An offline cache of teacher features and the distiller that trains a student from it."""
