"""Picture files and folders of them: which formats there are, and which files of a folder are pictures."""
