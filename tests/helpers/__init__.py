"""What several test files share: oracles, finished runs, folders of images, a browser."""
