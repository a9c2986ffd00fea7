"""Cost of a token: rented or bought, measured or published."""
