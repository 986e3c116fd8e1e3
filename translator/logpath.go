package translator

import (
	"path"
	"strings"
)

func logDirectory(p *problems, dir string) string {
	if dir == "" {
		return ""
	}
	dir = checkPath(p, "log_directory", dir)
	if dir == "/" {
		p.add("log_directory", "is the root of the file system")
	}
	return dir
}

// logPath joins the pod's log directory and log_path to the absolute path of the log; "" where either is empty, which is
// no log. That nothing on the way is a symlink is checked where the log is opened (CRI-O CVE-2025-0750).
func logPath(p *problems, dir, name string) string {
	const field = "log_path"
	if dir == "" || name == "" {
		return ""
	}
	switch {
	case len(dir)+1+len(name) > maxPath:
		p.add(field, "has %d bytes, a path has %d at most", len(name), maxPath)
	case hasControl(name):
		p.add(field, "%.80q holds control characters", name)
	case path.IsAbs(name):
		p.add(field, "%.80q is not relative to the log directory", name)
	case hasDotDot(name):
		p.add(field, "%.80q holds \"..\"", name)
	case strings.HasSuffix(name, "/"), path.Base(name) == ".":
		p.add(field, "%.80q names a directory", name)
	}
	return path.Join(dir, name)
}
