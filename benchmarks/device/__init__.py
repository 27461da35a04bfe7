"""What is measured on one accelerator, by one command, where nothing can be fetched: run.sh."""
