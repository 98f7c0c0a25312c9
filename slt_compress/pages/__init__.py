"""One offline HTML page about tickets and exported folders."""
