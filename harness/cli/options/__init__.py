"""Options of the command line by theme: type aliases that several commands share, each with its unit and its help."""
