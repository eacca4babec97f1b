"""What another repository could take."""
