"""Object stores: S3 and a directory, behind one small port."""
