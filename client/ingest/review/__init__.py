"""Images that may hold writing wait here until a person has looked at them."""
