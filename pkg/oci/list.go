// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"errors"
	"io"
)

// openList returns a decoder of the elements of a JSON list. Its memory is proportional to the largest element.
func openList(list io.Reader) (*json.Decoder, error) {
	elements := json.NewDecoder(list)
	token, err := elements.Token()
	if err != nil {
		return nil, err
	}
	if token != json.Delim('[') {
		return nil, errors.New("must be a list")
	}
	return elements, nil
}

func isNull(data []byte) bool { return string(data) == "null" }
