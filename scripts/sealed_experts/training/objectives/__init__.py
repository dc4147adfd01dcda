"""What is trained: one module an objective, all of them served by the one loop."""
