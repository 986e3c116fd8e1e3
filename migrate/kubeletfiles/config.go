package kubeletfiles

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parseConfig reads the top level of a KubeletConfiguration.
func parseConfig(data string) (map[string]any, error) {
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(data), &values); err != nil {
		return nil, err
	}
	return values, nil
}

// setConfig sets a key of the top level and leaves every other line, comments too, as it is.
func setConfig(data, key, value string) (string, error) {
	before, err := parseConfig(data)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(strings.TrimSpace(data), "{") {
		return "", errors.New("it is JSON: set " + key + " to " + value + " by hand")
	}
	line := key + ": " + value
	lines := strings.Split(strings.TrimRight(data, "\n"), "\n")
	found := false
	for i := range lines {
		if strings.HasPrefix(lines[i], key+":") {
			lines[i], found = line, true
		}
	}
	if !found {
		lines = append(lines, line)
	}
	edited := strings.Join(lines, "\n") + "\n"
	after, err := parseConfig(edited)
	if err != nil || after[key] != value {
		return "", fmt.Errorf("its form is not one that can be edited safely: set %s to %s by hand", key, value)
	}
	rest := func(m map[string]any) map[string]any {
		m = maps.Clone(m)
		delete(m, key)
		return m
	}
	if !reflect.DeepEqual(rest(before), rest(after)) {
		return "", fmt.Errorf("its form is not one that can be edited safely: set %s to %s by hand", key, value)
	}
	return edited, nil
}
