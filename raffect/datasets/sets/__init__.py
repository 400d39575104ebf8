"""One importer a data set, and what the sets of clips and those of pictures share."""
