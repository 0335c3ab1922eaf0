"""`make bench`: Stillframe's block path and sessions beside what else there is, in one run on one file system."""
