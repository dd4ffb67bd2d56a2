"""What is wrong with a node, from facts that others have read: values and functions, no I/O, no clock."""
