package translator

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// maxPath is the kernel's PATH_MAX without the closing NUL.
const maxPath = 4095

// hasControl says whether s holds control characters: NUL, line breaks, escapes. Tabs count too.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || (r >= 0x7f && r < 0xa0) || r == '\u2028' || r == '\u2029' })
}

func onlyRunes(s string, ok func(rune) bool) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !ok(r) })
}

func isAlnum(r rune) bool {
	return (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9')
}

func hasDotDot(p string) bool { return slices.Contains(strings.Split(p, "/"), "..") }

// clip quotes a hostile text for an error.
func clip(s string) string { return fmt.Sprintf("%.80q", s) }

// checkPath notes what keeps s from being an absolute path without surprises and returns it cleaned.
func checkPath(p *problems, field, s string) string {
	switch {
	case s == "":
		p.add(field, "is required")
	case len(s) > maxPath:
		p.add(field, "has %d bytes, a path has %d at most", len(s), maxPath)
	case hasControl(s):
		p.add(field, "%.80q holds control characters", s)
	case !path.IsAbs(s):
		p.add(field, "%.80q is not absolute", s)
	case hasDotDot(s):
		p.add(field, "%.80q holds \"..\"", s)
	}
	return path.Clean(s)
}

// under says whether the clean absolute path p lies below root, or is root itself.
func under(root, p string) bool {
	root = path.Clean(root)
	return root == "/" || p == root || strings.HasPrefix(p, root+"/")
}
