"""What the scripts beside this file do, where that takes more than a few lines of shell."""
