"""What the edge is compared with, each as it does best: configurations and programs, written out for whoever doubts them."""
