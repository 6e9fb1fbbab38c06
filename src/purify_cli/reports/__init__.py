"""Reports: a `Report` in, text out. Whatever comes from a checkpoint or a dataset is escaped here."""
