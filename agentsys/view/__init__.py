"""The viewer: runs, trainings and trees as one HTML page, which needs no server and no network."""
