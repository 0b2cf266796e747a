"""What training would cost, by arithmetic alone: no weight is read, and torch is not imported."""
