package cni

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// limits is the value of the bandwidth capability, in bit/s. The bursts are as large as the plugin takes: only the rate
// is the user's to choose (as in the kubelet's own former plugin code).
type limits struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// bandwidth reads the two annotations; nil when there are none. Kubernetes allows 1k to 1P bit/s.
func bandwidth(annotations map[string]string) (*limits, error) {
	var l limits
	var err error
	if value, ok := annotations[IngressBandwidth]; ok {
		if l.IngressRate, err = bitRate(value); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", IngressBandwidth, err)
		}
		l.IngressBurst = math.MaxInt32
	}
	if value, ok := annotations[EgressBandwidth]; ok {
		if l.EgressRate, err = bitRate(value); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", EgressBandwidth, err)
		}
		l.EgressBurst = math.MaxInt32
	}
	if l == (limits{}) {
		return nil, nil
	}
	return &l, nil
}

var quantitySuffixes = map[string]int64{
	"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// bitRate reads a Kubernetes quantity: a decimal number with a suffix.
func bitRate(text string) (uint64, error) {
	const least, most = 1e3, 1e15
	number := strings.TrimRight(text, "kMGTPEi")
	unit, known := quantitySuffixes[text[len(number):]]
	const digits = "0123456789"
	mantissa := number
	if i := strings.IndexAny(number, "eE"); i >= 0 { // in place of a suffix, and no larger than it could be
		exponent := number[i+1:]
		mantissa, known = number[:i], number == text && exponent != "" && len(exponent) <= 2 && strings.Trim(exponent, digits) == ""
	}
	if !known || len(text) > 32 || mantissa == "" || strings.Trim(mantissa, digits+".") != "" {
		return 0, fmt.Errorf("%.40q is no quantity such as 10M", text)
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("%.40q is no quantity such as 10M", text)
	}
	value.Mul(value, new(big.Rat).SetInt64(unit))
	if value.Cmp(new(big.Rat).SetInt64(least)) < 0 || value.Cmp(new(big.Rat).SetInt64(most)) > 0 {
		return 0, fmt.Errorf("%.40q is outside of 1k to 1P bit/s", text)
	}
	return new(big.Int).Quo(value.Num(), value.Denom()).Uint64(), nil
}
