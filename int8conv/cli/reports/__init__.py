"""What commands show of results that are more than a table."""
