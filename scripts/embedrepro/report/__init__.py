"""The report: from the result files of one experiment to pages and tables that can be sent."""
