package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// decode reads the file into c and returns everything that is wrong with it: unknown keys and values of the wrong form.
// Where it is no TOML at all only the first fault can be told.
func (c *Config) decode(path string, data []byte) []error {
	var wrong *toml.DecodeError
	if err := toml.Unmarshal(data, &map[string]any{}); errors.As(err, &wrong) {
		return []error{atLine(path, wrong)}
	} else if err != nil {
		return []error{fmt.Errorf("%s: %w", path, err)}
	}
	var errs []error
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
		default:
			// Success, or TOML that is broken only because a line of it was taken away.
			return errs
		}
	}
}

func atLine(path string, e *toml.DecodeError) error {
	row, _ := e.Position()
	return fmt.Errorf("%s:%d: %s%s", path, row, prefix(e.Key()), strings.TrimPrefix(e.Error(), "toml: "))
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
	p.Reset(data)
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
