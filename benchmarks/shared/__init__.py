"""What several benchmarks use: records, statistics, tables, lanes, tuning, and the words for all of them."""
