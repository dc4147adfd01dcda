"""What scores a sampled answer. Light: nothing here loads torch, unless a function of the user's does."""
