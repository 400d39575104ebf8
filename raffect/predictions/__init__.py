"""What heads answer: the table of predictions, decision rules, challenge files."""
