"""The tools which Headrace's Spark jobs are compared with, each doing the same job as its own expert would write it."""
