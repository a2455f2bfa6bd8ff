"""What the services share: the published language (`shared.events`) and plumbing with at least two users. No business rules."""
