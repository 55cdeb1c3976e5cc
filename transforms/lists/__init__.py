"""Makes the top-k lists of users, as the table holds them, and checks them."""
