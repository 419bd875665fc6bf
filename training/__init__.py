"""Training, evaluation and the `xsam` console command; installed as `xsam_training`."""
