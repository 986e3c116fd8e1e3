package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// decode reads the file into c and returns everything that is wrong with it: unknown keys and values of the wrong form.
// Where it is no TOML at all only the first fault can be told.
func (c *Config) decode(path string, data []byte) []error {
	data = withoutMark(data)
	var wrong *toml.DecodeError
	written := map[string]any{}
	if err := toml.Unmarshal(data, &written); errors.As(err, &wrong) {
		return []error{atLine(path, wrong)}
	} else if err != nil {
		return []error{fmt.Errorf("%s: %w", path, err)}
	}
	lines := keyLines(data)
	unitless, errs := withoutUnit(path, written, lines)
	errs = append(errs, inCapitals(path, lines)...)
	defer c.reset(unitless)
	rest := bytes.Split(bytes.Clone(data), []byte("\n"))
	for {
		d := toml.NewDecoder(bytes.NewReader(bytes.Join(rest, []byte("\n"))))
		err := d.DisallowUnknownFields().Decode(c)
		var unknown *toml.StrictMissingError
		switch {
		case errors.As(err, &unknown):
			for i := range unknown.Errors {
				key := strings.Join(unknown.Errors[i].Key(), ".")
				row, _ := unknown.Errors[i].Position()
				errs = append(errs, fmt.Errorf("%s:%d: unknown key %s%s", path, row, key, advice(key)))
			}
			return errs
		case errors.As(err, &wrong) && len(wrong.Key()) > 0:
			// The decoder ends at the first wrong value: without its line the others are found.
			row, _ := wrong.Position()
			if len(rest[row-1]) == 0 {
				return errs
			}
			rest[row-1] = nil
			errs = append(errs, atLine(path, wrong))
		case err != nil && len(errs) == 0:
			return []error{fmt.Errorf("%s: %w", path, err)}
		default:
			// Success, or TOML that is broken only because a line of it was taken away.
			return errs
		}
	}
}

// withoutMark takes away what some editors begin a file of UTF-8 with.
func withoutMark(data []byte) []byte { return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) }

func atLine(path string, e *toml.DecodeError) error {
	row, _ := e.Position()
	return fmt.Errorf("%s:%d: %s%s", path, row, prefix(e.Key()), inTOML(strings.Join(e.Key(), "."), strings.TrimPrefix(e.Error(), "toml: ")))
}

// withoutUnit finds the durations and sizes that are no texts: the decoder takes some for nanoseconds or bytes, and ends at
// others without telling where.
func withoutUnit(path string, written map[string]any, lines map[string]int) (keys []string, errs []error) {
	for _, s := range settings(Default()) {
		example := ""
		switch s.value.Interface().(type) {
		case Duration:
			example = "10s"
		case Size:
			example = "50MiB"
		default:
			continue
		}
		value, rest := any(written), s.key
		for rest != "" {
			section, _ := value.(map[string]any) // none where something else stands in its place, which the decoder tells
			var name string
			name, rest, _ = strings.Cut(rest, ".")
			value = section[name]
		}
		line := lines[s.key]
		if section, _, _ := strings.Cut(s.key, "."); line == 0 { // it is in an inline table
			line = lines[section]
		}
		switch value.(type) {
		case int64, float64:
			keys, errs = append(keys, s.key), append(errs, fmt.Errorf("%s:%d: %s: %v has no unit; write it as in %q", path, line, s.key, value, example))
		case bool:
			keys, errs = append(keys, s.key), append(errs, fmt.Errorf("%s:%d: %s: it is %s", path, line, s.key, s.form()))
		}
	}
	return keys, errs
}

// inCapitals finds the keys that the decoder takes for ours although TOML tells capitals from small letters, and another version may.
func inCapitals(path string, lines map[string]int) (errs []error) {
	for _, key := range slices.Sorted(maps.Keys(lines)) {
		names := strings.Split(key, ".")
		if len(names) > 1 && names[0] == "handlers" {
			names[1] = "" // chosen by the operator
		}
		if name := strings.Join(names, "."); name != strings.ToLower(name) {
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %s: keys are in small letters", path, lines[key], key))
		}
	}
	return errs
}

// reset gives settings their defaults: what is wrong with them was said.
func (c *Config) reset(keys []string) {
	defaults := settings(Default())
	for i, s := range settings(c) {
		if slices.Contains(keys, s.key) {
			s.value.Set(defaults[i].value)
		}
	}
}

// inTOML says in the file's own words what the decoder says in Go's.
func inTOML(key, message string) string {
	switch {
	case strings.Contains(message, "at start of value"), strings.HasPrefix(message, "expected keyword"):
		return message + "; texts need quotes"
	case !strings.HasPrefix(message, "cannot decode TOML") && !strings.HasPrefix(message, "cannot store"):
		return message
	}
	for _, s := range settings(Default()) {
		if s.key == key {
			return "it is " + s.form()
		}
		if section, _, ok := strings.Cut(s.key, "."); ok && section == key {
			return "it is a section, [" + key + "]"
		}
	}
	if key == "handlers" {
		return "it has a section for each handler, [handlers.NAME]"
	}
	if name, ok := strings.CutPrefix(key, "handlers."); ok && !strings.Contains(name, ".") {
		return "it is a section, [" + key + "]"
	}
	return "it is a text in quotes" // a handler's
}

// form is how the file has the setting.
func (s setting) form() string {
	name := s.key[strings.LastIndex(s.key, ".")+1:]
	switch s.value.Interface().(type) {
	case bool:
		return "true or false, without quotes"
	case int:
		return "a whole number without quotes"
	case []string:
		if s.value.Len() == 0 {
			return "a list of texts, as in " + name + ` = ["one", "two"]`
		}
		return "a list of texts, as in " + name + " = " + s.toml()
	case Duration:
		return `a duration with its unit, in quotes, as in "90s"`
	case Size:
		return `a size with its unit, in quotes, as in "50MiB"`
	}
	return "a text in quotes"
}

func prefix(key toml.Key) string {
	if len(key) == 0 {
		return ""
	}
	return strings.Join(key, ".") + ": "
}

func advice(key string) string {
	if instead, ok := removed[key]; ok {
		return ": it was removed; " + instead
	}
	return ""
}

// keyLines is where each key and section of the file stands.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(withoutMark(data))
	var section []string
	for p.NextExpression() {
		e := p.Expression()
		var key []string
		line := 0
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
			line = p.Shape(it.Node().Raw).Start.Line
		}
		if e.Kind == unstable.Table {
			section = key
		} else {
			key = append(slices.Clone(section), key...)
		}
		lines[strings.Join(key, ".")] = line
	}
	return lines
}
