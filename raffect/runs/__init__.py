"""What a run is: its data, its folder, its records, its scores and what they say."""
