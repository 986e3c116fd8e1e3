package kubeletfiles

import (
	"fmt"
	"maps"
	"strings"
)

// unit is what systemd makes of kubelet.service and its drop-ins.
type unit struct {
	exec     []string // words of ExecStart, variables not expanded
	execFile string   // the file that holds it
	// env and envOrigin are the variables, those of environment files over the others, as systemd has it.
	env       map[string]string
	envOrigin map[string]string // variable → the file that sets it
	envFiles  []string
}

// parseUnit reads unit files in systemd's order. readEnv returns an environment file's text; false where it is absent.
func parseUnit(files []File, readEnv func(path string) (text string, ok bool)) (*unit, error) {
	u := &unit{env: map[string]string{}, envOrigin: map[string]string{}}
	for _, f := range files {
		if err := u.read(f); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	for _, path := range u.envFiles {
		text, ok := readEnv(path)
		if !ok {
			continue
		}
		values, err := parseEnv(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for name, value := range values {
			u.env[name], u.envOrigin[name] = value, path
		}
	}
	return u, nil
}

func (u *unit) read(f File) error {
	section := ""
	for _, line := range logicalLines(withoutComments(f.Data)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if line[0] == '[' {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section != "[Service]" {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "ExecStart":
			if value == "" {
				u.exec, u.execFile = nil, ""
				continue
			}
			words, err := splitWords(value)
			if err != nil {
				return fmt.Errorf("ExecStart: %w", err)
			}
			u.exec, u.execFile = words, f.Path
		case "Environment":
			if value == "" {
				clear(u.env)
				clear(u.envOrigin)
				continue
			}
			words, err := splitWords(value)
			if err != nil {
				return fmt.Errorf("environment: %w", err)
			}
			for _, word := range words {
				if name, value, ok := strings.Cut(word, "="); ok {
					u.env[name], u.envOrigin[name] = value, f.Path
				}
			}
		case "EnvironmentFile":
			if value == "" {
				u.envFiles = nil
				continue
			}
			u.envFiles = append(u.envFiles, strings.Trim(strings.TrimPrefix(value, "-"), `"`))
		}
	}
	return nil
}

// arguments are the words that the kubelet gets, each with where it stands.
func (u *unit) arguments() ([]Argument, error) {
	var args []Argument
	for i, word := range u.exec {
		if i == 0 {
			continue // the program
		}
		if name, ok := wholeVariable(word); ok {
			words, err := splitWords(u.env[name])
			if err != nil {
				return nil, fmt.Errorf("variable %s in %s: %w", name, u.envOrigin[name], err)
			}
			for _, w := range words {
				args = append(args, Argument{Text: w, File: u.envOrigin[name], Variable: name})
			}
			continue
		}
		args = append(args, Argument{Text: expand(word, u.env), File: u.execFile})
	}
	return args, nil
}

// wholeVariable is $NAME as a word of its own, which systemd splits into words; ${NAME} stays one.
func wholeVariable(word string) (name string, ok bool) {
	name, ok = strings.CutPrefix(word, "$")
	return name, ok && name != "" && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

func expand(word string, env map[string]string) string {
	for name := range maps.Keys(env) {
		word = strings.ReplaceAll(word, "${"+name+"}", env[name])
	}
	return word
}

// withoutComments takes the comments out of a unit file. They are no end of a setting that goes over several lines, and a
// backslash at their end joins nothing to them.
func withoutComments(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if rest := strings.TrimLeft(line, " \t"); rest == "" || rest[0] != '#' && rest[0] != ';' {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// logicalLines joins the lines that end in a backslash.
func logicalLines(text string) []string {
	var lines []string
	joined := ""
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if rest, ok := strings.CutSuffix(line, `\`); ok {
			joined += rest + " "
			continue
		}
		lines = append(lines, joined+line)
		joined = ""
	}
	if joined != "" {
		lines = append(lines, joined)
	}
	return lines
}

// splitWords splits as systemd does: at blanks outside quotes, which are taken away; a backslash keeps the next character.
func splitWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'':
			if i++; i == len(text) {
				return nil, fmt.Errorf("a backslash ends %q", text)
			}
			word.WriteByte(text[i])
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote is not closed in %q", text)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// joinWords is the inverse of splitWords.
func joinWords(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = word
		if word == "" || strings.ContainsAny(word, " \t\n\"'\\") {
			quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
		}
	}
	return strings.Join(quoted, " ")
}
