"""Videos, cameras and streams: their frames in, results and drawn videos out. PyAV is imported in this folder alone."""
