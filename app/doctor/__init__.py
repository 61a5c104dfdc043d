"""`flask doctor`: finds what the operator has to correct, and says how."""
