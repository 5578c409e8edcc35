"""Raw log to snapshot, as jobs for spark-submit: one file a job under jobs/, pure transforms under transforms/."""
