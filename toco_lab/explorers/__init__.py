"""Click and slide: the token explorer, the CAM explorer, the run browser, and what they compute."""
