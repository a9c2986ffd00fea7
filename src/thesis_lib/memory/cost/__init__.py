"""What a token costs, rented or bought, measured or published."""
