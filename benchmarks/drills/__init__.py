"""What kills, full disks, damage, hostile files and second runs do to every command."""
