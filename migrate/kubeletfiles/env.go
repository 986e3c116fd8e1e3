package kubeletfiles

import (
	"fmt"
	"strings"
)

// parseEnv reads an environment file of systemd: NAME=VALUE lines, the last one counts.
func parseEnv(text string) (map[string]string, error) {
	values := map[string]string{}
	for _, line := range logicalLines(text) {
		name, raw, ok := assignment(line)
		if !ok {
			continue
		}
		value, err := unquote(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		values[name] = value
	}
	return values, nil
}

func assignment(line string) (name, raw string, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' || line[0] == ';' {
		return "", "", false
	}
	name, raw, ok = strings.Cut(line, "=")
	return strings.TrimSpace(strings.TrimPrefix(name, "export ")), strings.TrimSpace(raw), ok
}

// unquote takes the quotes around a value away; within double quotes a backslash keeps ", \, $ and `.
func unquote(raw string) (string, error) {
	if raw == "" || (raw[0] != '"' && raw[0] != '\'') {
		return raw, nil
	}
	quote := raw[0]
	var value strings.Builder
	for i := 1; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == quote && strings.TrimSpace(raw[i+1:]) == "":
			return value.String(), nil
		case c == quote:
			return "", fmt.Errorf("text follows the closing quote of %s", raw)
		case c == '\\' && quote == '"' && i+1 < len(raw) && strings.IndexByte("\"\\$`", raw[i+1]) >= 0:
			i++
			value.WriteByte(raw[i])
		default:
			value.WriteByte(c)
		}
	}
	return "", fmt.Errorf("a quote is not closed in %s", raw)
}

// setEnv replaces the last assignment of a variable, or adds one. Other lines stay as they are.
func setEnv(text, name, value string) string {
	line := name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(value) + `"`
	lines := strings.Split(text, "\n")
	for first := len(lines) - 1; first >= 0; first-- {
		if first > 0 && strings.HasSuffix(lines[first-1], `\`) {
			continue // the middle of a line
		}
		if found, _, ok := assignment(lines[first]); !ok || found != name {
			continue
		}
		last := first
		for last < len(lines)-1 && strings.HasSuffix(lines[last], `\`) {
			last++
		}
		return strings.Join(append(append(append([]string{}, lines[:first]...), line), lines[last+1:]...), "\n")
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + line + "\n"
}
