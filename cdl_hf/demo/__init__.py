"""A web page with the predictions of a run's teacher and student side by side; needs the extra [demo]."""
