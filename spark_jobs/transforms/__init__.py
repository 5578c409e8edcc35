"""Plain functions from DataFrame to DataFrame; they write nothing."""
