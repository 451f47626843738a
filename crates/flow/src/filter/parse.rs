//! From an expression to a tree.
//!
//! mitmproxy's grammar, as its parser generator reads it, has surprises: a `&` or `|` where an expression is expected is a
//! word to look for in URLs, and in a quoted string a backslash vanishes. They are kept; `tests/filter.rs` compares.

use super::operators::{self, Argument, Kind, OPERATORS, Operator, Texts};
use super::pattern::{Pattern, Token};
use super::range::Range;
use super::{FilterError, FilterOptions, Node, Test};

/// The deepest nesting of parentheses and `!`.
const MAX_DEPTH: usize = 64;

/// The longest expression, in bytes.
const MAX_LENGTH: usize = 64 * 1024;

pub(super) fn parse(expression: &str, options: &FilterOptions) -> Result<Node, FilterError> {
    if expression.len() > MAX_LENGTH {
        return Err(error(1, "the expression is longer than 64 KiB"));
    }
    let mut parser = Parser {
        chars: expression.chars().collect(),
        at: 0,
        open: Vec::new(),
        nots: 0,
        options,
    };
    let node = parser.sequence()?;
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.fail(parser.at, "there is no parenthesis that this one closes")),
    }
}

struct Parser<'a> {
    chars: Vec<char>,
    at: usize,
    /// Where the parentheses around `at` begin.
    open: Vec<usize>,
    nots: usize,
    options: &'a FilterOptions,
}

impl Parser<'_> {
    /// Expressions beside each other, up to the end or a closing parenthesis.
    fn sequence(&mut self) -> Result<Node, FilterError> {
        let mut nodes = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None | Some(')') => break,
                Some(_) => nodes.push(self.or()?),
            }
        }
        match nodes.len() {
            0 => Err(match (self.open.last(), self.peek()) {
                (_, None) if self.open.is_empty() => error(1, "the expression is empty"),
                (_, None) => self.never_closed(),
                (None, _) => self.fail(self.at, "there is no parenthesis that this one closes"),
                (Some(_), _) => self.fail(self.at, "there is nothing between the parentheses"),
            }),
            1 => nodes
                .pop()
                .ok_or_else(|| error(1, "the expression is empty")),
            _ => Ok(Node::And(nodes)),
        }
    }

    fn or(&mut self) -> Result<Node, FilterError> {
        self.chain('|', Self::and, Node::Or)
    }

    fn and(&mut self) -> Result<Node, FilterError> {
        self.chain('&', Self::not, Node::And)
    }

    /// Operands with an operator between them.
    fn chain(
        &mut self,
        operator: char,
        operand: fn(&mut Self) -> Result<Node, FilterError>,
        join: fn(Vec<Node>) -> Node,
    ) -> Result<Node, FilterError> {
        let first = operand(self)?;
        let mut nodes = Vec::new();
        while self.infix(operator)? {
            nodes.push(operand(self)?);
        }
        if nodes.is_empty() {
            return Ok(first);
        }
        nodes.insert(0, first);
        Ok(join(nodes))
    }

    /// Takes an operator, which must have an operand behind it.
    fn infix(&mut self, operator: char) -> Result<bool, FilterError> {
        let before = self.at;
        self.skip_space();
        if self.peek() != Some(operator) {
            self.at = before;
            return Ok(false);
        }
        self.take_operator(operator)?;
        Ok(true)
    }

    fn take_operator(&mut self, operator: char) -> Result<(), FilterError> {
        let at = self.at;
        self.at += 1;
        self.skip_space();
        match self.peek() {
            None | Some(')') => Err(self.fail(at, &format!("{operator} has nothing to its right"))),
            Some(_) => Ok(()),
        }
    }

    fn not(&mut self) -> Result<Node, FilterError> {
        self.skip_space();
        if self.peek() != Some('!') {
            return self.atom();
        }
        let at = self.at;
        self.take_operator('!')?;
        self.nots += 1;
        self.check_depth(at)?;
        let node = self.not()?;
        self.nots -= 1;
        Ok(Node::Not(Box::new(node)))
    }

    fn atom(&mut self) -> Result<Node, FilterError> {
        self.skip_space();
        let at = self.at;
        match self.peek() {
            Some('(') => {
                self.at += 1;
                self.open.push(at);
                self.check_depth(at)?;
                let node = self.sequence()?;
                if self.peek() != Some(')') {
                    return Err(self.never_closed());
                }
                self.at += 1;
                self.open.pop();
                Ok(node)
            }
            Some(')') => Err(self.fail(at, "an expression is missing before this parenthesis")),
            None => Err(self.fail(at, "an expression is missing at the end")),
            Some('~') => self.operator(),
            Some(_) => {
                let token = self.token()?;
                self.text(Texts::Url, &token)
            }
        }
    }

    fn operator(&mut self) -> Result<Node, FilterError> {
        let at = self.at;
        self.at += 1;
        let code: String = self
            .rest()
            .iter()
            .take_while(|c| c.is_ascii_alphanumeric())
            .collect();
        // ~c200
        let digits = code.strip_prefix('c').filter(|rest| is_number(rest));
        let name = if digits.is_some() { "c" } else { &code };
        let Some(operator) = operators::find(name) else {
            return Err(self.fail(at, &unknown(&code)));
        };
        self.at += name.len();
        self.check_end_of(operator)?;
        match operator.kind {
            Kind::All => Ok(Node::Test(Test::All)),
            Kind::Asset => Ok(Node::Test(Test::Asset)),
            Kind::Is(property) => Ok(Node::Test(Test::Is(property))),
            Kind::Code => {
                self.skip_space();
                let digits: String = self
                    .rest()
                    .iter()
                    .take_while(|c| c.is_ascii_digit())
                    .collect();
                if digits.is_empty() {
                    let hint = "~c needs a status code behind it (for classes and ranges, there is ~status)";
                    return Err(self.fail(self.at, hint));
                }
                self.at += digits.len();
                // More than fits is no status either way.
                Ok(Node::Test(Test::Code(digits.parse().unwrap_or(u64::MAX))))
            }
            Kind::Text(texts) => {
                let token = self.argument(operator)?;
                self.text(texts, &token)
            }
            Kind::Number(numbers) => {
                let token = self.argument(operator)?;
                let range = Range::parse(&token.text(), operator.argument)
                    .map_err(|message| error(token.column(0), &message))?;
                Ok(Node::Test(Test::Number(numbers, range)))
            }
        }
    }

    /// mitmproxy wants white space behind an operator; here it may be left out where no doubt arises.
    fn check_end_of(&self, operator: &Operator) -> Result<(), FilterError> {
        let fine = match self.peek() {
            None => true,
            Some(c) if !c.is_ascii_graphic() => true,
            Some(c) => match operator.argument {
                Argument::None => "()&|".contains(c),
                Argument::Integer => c.is_ascii_digit(),
                _ => "\"'".contains(c) || ")(".contains(c),
            },
        };
        if fine {
            return Ok(());
        }
        let what = match operator.argument {
            Argument::None => "what follows",
            _ => "its argument",
        };
        let message = format!("a space is missing between ~{} and {what}", operator.code);
        Err(self.fail(self.at, &message))
    }

    fn argument(&mut self, operator: &Operator) -> Result<Token, FilterError> {
        self.skip_space();
        let what = match operator.argument {
            Argument::Size => "a size such as >10k",
            Argument::Duration => "a time such as >500ms",
            Argument::Status => "a status such as 404 or 5xx",
            _ => "a pattern",
        };
        match self.peek() {
            Some('(') => {
                let message = format!(
                    "~{} needs {what}; quote one with parentheses in it",
                    operator.code
                );
                Err(self.fail(self.at, &message))
            }
            None | Some(')' | '~') => Err(self.fail(
                self.at,
                &format!("~{} needs {what} behind it", operator.code),
            )),
            Some(_) => self.token(),
        }
    }

    /// A word, or a quoted string.
    fn token(&mut self) -> Result<Token, FilterError> {
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote),
            _ => {
                let start = self.at;
                let word: Vec<_> = self
                    .rest()
                    .iter()
                    .take_while(|c| !"()~'\" \n\t\r".contains(**c))
                    .copied()
                    .collect();
                self.at += word.len();
                let columns = start + 1..=start + word.len();
                Ok(Token::new(
                    word.into_iter().zip(columns).collect(),
                    self.at + 1,
                ))
            }
        }
    }

    /// A backslash gives the next character its plain self, but for t, n, r, f and 0, which stand for control characters.
    fn quoted(&mut self, quote: char) -> Result<Token, FilterError> {
        let start = self.at;
        self.at += 1;
        let mut token = Vec::new();
        while let Some(c) = self.peek() {
            let column = self.at + 1;
            self.at += 1;
            if c == quote {
                return Ok(Token::new(token, column));
            }
            if c != '\\' {
                token.push((c, column));
                continue;
            }
            let Some(escaped) = self.peek() else {
                break;
            };
            self.at += 1;
            let plain = match escaped {
                't' => '\t',
                'n' => '\n',
                'r' => '\r',
                'f' => '\x0c',
                '0' => '\0',
                other => other,
            };
            token.push((plain, column));
        }
        Err(self.fail(start, "this quote is never closed"))
    }

    fn text(&self, texts: Texts, token: &Token) -> Result<Node, FilterError> {
        let pattern = Pattern::compile(token, texts.flavour(), !self.options.case_sensitive)?;
        Ok(Node::Test(Test::Text(texts, pattern)))
    }

    fn check_depth(&self, at: usize) -> Result<(), FilterError> {
        if self.open.len() + self.nots > MAX_DEPTH {
            return Err(self.fail(at, "more than 64 expressions within each other"));
        }
        Ok(())
    }

    fn never_closed(&self) -> FilterError {
        let at = self.open.last().copied().unwrap_or(self.at);
        self.fail(at, "this parenthesis is never closed")
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|c| " \n\t\r".contains(c)) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn rest(&self) -> &[char] {
        self.chars.get(self.at..).unwrap_or_default()
    }

    fn fail(&self, at: usize, message: &str) -> FilterError {
        error(at + 1, message)
    }
}

pub(super) fn error(column: usize, message: &str) -> FilterError {
    FilterError {
        column,
        message: message.to_owned(),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn unknown(code: &str) -> String {
    if code.is_empty() {
        return "~ needs the name of an operator behind it (quote it to look for a tilde)"
            .to_owned();
    }
    let lower = code.to_ascii_lowercase();
    let near = OPERATORS
        .iter()
        .map(|operator| (distance(operator.code, &lower), operator.code))
        .min()
        .filter(|(distance, _)| *distance <= code.len() / 3);
    match near {
        Some((_, near)) => format!("there is no operator ~{code}; did you mean ~{near}?"),
        None => format!("there is no operator ~{code}"),
    }
}

/// How many letters have to change: Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.bytes().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Filter;

    fn words(expression: &str) -> String {
        Filter::new(expression).unwrap().to_string()
    }

    fn refused(expression: &str) -> (usize, String) {
        let error = Filter::new(expression).unwrap_err();
        (error.column, error.message)
    }

    #[test]
    fn what_mitmproxy_refuses_for_want_of_a_space_is_accepted() {
        for (tight, spaced) in [
            ("(~q)", "( ~q )"),
            ("~q&~s", "~q & ~s"),
            ("~q|~s", "~q | ~s"),
            ("~c200", "~c 200"),
            ("~b\"x\"", "~b x"),
            ("!(~q | ~s)", "!( ~q | ~s )"),
            ("(~u a ~u b)", "( ~u a & ~u b )"),
        ] {
            assert_eq!(words(tight), words(spaced), "{tight}");
        }
    }

    #[test]
    fn errors_point_at_what_is_wrong() {
        for (expression, column, message) in [
            ("", 1, "the expression is empty"),
            ("  ", 1, "the expression is empty"),
            ("~q & (~s", 6, "this parenthesis is never closed"),
            ("(", 1, "this parenthesis is never closed"),
            ("~q )", 4, "there is no parenthesis that this one closes"),
            (")", 1, "there is no parenthesis that this one closes"),
            ("()", 2, "there is nothing between the parentheses"),
            ("~q &", 4, "& has nothing to its right"),
            ("! !", 3, "! has nothing to its right"),
            ("(~q &)", 5, "& has nothing to its right"),
            ("(!)", 2, "! has nothing to its right"),
            ("~b", 3, "~b needs a pattern behind it"),
            ("~b ~q", 4, "~b needs a pattern behind it"),
            (
                "~m (GET)",
                4,
                "~m needs a pattern; quote one with parentheses in it",
            ),
            ("~u 'a", 4, "this quote is never closed"),
            (
                "~c abc",
                4,
                "~c needs a status code behind it (for classes and ranges, there is ~status)",
            ),
            ("~foo", 1, "there is no operator ~foo"),
            ("~Q", 1, "there is no operator ~Q; did you mean ~q?"),
            (
                "~websocet",
                1,
                "there is no operator ~websocet; did you mean ~websocket?",
            ),
            (
                "a ~",
                3,
                "~ needs the name of an operator behind it (quote it to look for a tilde)",
            ),
            ("~u=x", 3, "a space is missing between ~u and its argument"),
            ("~q~s", 3, "a space is missing between ~q and what follows"),
            (
                "~size big",
                7,
                "expected a size such as >10k, <=1m or 10k..20k",
            ),
            (
                "~b 'a[\\\\d'",
                6,
                "this class of characters is never closed",
            ),
        ] {
            assert_eq!(
                refused(expression),
                (column, message.to_owned()),
                "{expression}"
            );
        }
        assert!(refused(&"(".repeat(100)).1.contains("64"));
        assert!(refused(&"!".repeat(100)).1.contains("64"));
        assert!(refused(&"a".repeat(70_000)).1.contains("64 KiB"));
    }

    #[test]
    fn a_caret_stands_below_the_column() {
        let expression = "~q & ~foo";
        let error = Filter::new(expression).unwrap_err();
        assert_eq!(
            error.pointed_at(expression),
            "column 6: there is no operator ~foo\n  ~q & ~foo\n       ^"
        );
    }
}
