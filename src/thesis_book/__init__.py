"""What makes a thesis of it: chapters executed, compared and rendered."""
