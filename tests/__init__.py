"""The tests, and the lab that demo and benchmark share with them."""
