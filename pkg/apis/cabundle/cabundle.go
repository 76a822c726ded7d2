// SPDX-License-Identifier: Apache-2.0

// Package cabundle checks bundles of certificate authorities.
package cabundle

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Validate refuses what a cache would silently ignore: everything in bundle that is no certificate in PEM. Text between
// the certificates is allowed. The error repeats nothing of bundle but the types of its blocks.
func Validate(bundle string) error {
	rest := []byte(bundle)
	// Text between the blocks is allowed, and pem.Decode skips a block that it cannot read as if it were text: the
	// first lines are counted to notice.
	for number := range max(1, strings.Count(bundle, "-----BEGIN ")) {
		number++
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----")
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %d is a %s, want only certificates", number, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("certificate %d: %w", number, err)
		}
	}
	return nil
}
