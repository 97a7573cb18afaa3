"""One file for each way in which images are kept; which data set is read by which is said in `registry`."""
