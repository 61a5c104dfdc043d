"""`flask doctor`: what the operator has to set right, and how."""
